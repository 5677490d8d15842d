"""Tools without a subject of their own: files, devices, downloads, pictures, progress bars."""
