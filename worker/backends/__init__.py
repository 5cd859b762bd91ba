"""Several servers for one model: which of them is asked, and which is left alone."""
