"""The bytes of a request and of its answer: read strictly, counted before they are made, written in pieces."""
