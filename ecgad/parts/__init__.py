"""What methods are made of. Nothing here knows what a record is."""
