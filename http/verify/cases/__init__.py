"""The cases, one file a part of the law. A file's cases are the `Case`s at its top level, in the order they stand."""
