"""Memory that a peer shares: the files it is in, and bitmaps of its pages."""
