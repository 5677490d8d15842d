"""Video files: decode, read at a rate and size, write, find cuts; and a clip that is built in."""
