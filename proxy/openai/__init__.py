"""The doors: OpenAI's dialects, spoken to clients. They know the relay and the words, and no vendor."""
