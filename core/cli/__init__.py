"""What each verb of the program does and prints; the door only parses."""
