"""What a model file costs on this machine."""
