"""The config of a run: composed from the command line, parsed once into a typed record, named."""
