"""What is told of documents and their pages."""
