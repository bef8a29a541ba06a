"""The simulator, against the documents it was written from."""
