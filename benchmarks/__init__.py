"""One file a question, one honest clock."""
