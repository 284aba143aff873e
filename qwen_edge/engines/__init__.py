"""Engines behind one seam: base.py says what one is, the others are one each."""
