"""What may be provisioned and how, decided without touching anything."""
