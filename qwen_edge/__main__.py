"""`python -m qwen_edge`."""

from qwen_edge.cli.main import run

if __name__ == "__main__":
    run()
