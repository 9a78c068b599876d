"""What a folder of images holds, and what in it is suspicious, before anything is trained."""
