"""The only place that imports llama_cpp: handles, quantize calls, logs, build facts, self-test."""
