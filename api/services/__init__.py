"""What routes and dashboard do, one noun a file."""
