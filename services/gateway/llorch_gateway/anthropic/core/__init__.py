"""What Anthropic's clients ask and are told, decided without touching anything."""
