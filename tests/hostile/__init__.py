"""A corpus of documents that are broken, lie, or mean harm, and of odd ones that are in order."""
