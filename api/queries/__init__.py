"""What routes and dashboard read, one noun a file."""
