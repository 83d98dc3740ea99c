"""From files to batches: sources, tokens kept on disk, the order of samples, packing, the loader."""
