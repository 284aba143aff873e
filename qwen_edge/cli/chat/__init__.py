"""`qwen-edge chat`: a conversation in the terminal.

Reading order: entry (options, the loop), conversation (what is said, and how it goes on), commands (what begins with a
slash), reading and prompt (where turns come from).
"""

from qwen_edge.cli.chat.entry import command

__all__ = ["command"]
