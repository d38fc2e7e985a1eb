"""The HTTP dialects, one file each: Starlette request in, `GenerationRequest` out, chunks back as JSON or events."""
