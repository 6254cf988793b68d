"""Putting a draft into a prompt: templates, rendered chats, control tokens, shortening."""
