"""The commands of orchctl, one module each: options in, a result as text or JSON out."""
