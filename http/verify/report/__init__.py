"""What was found, in every form it is shown."""
