"""What test prompts are wrapped in: a text file per style, what is done with it (styles), and the wrapping (sheet)."""
