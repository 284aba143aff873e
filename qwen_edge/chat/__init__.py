"""Text of a conversation, without an engine: templates, thinking, tool calls."""
