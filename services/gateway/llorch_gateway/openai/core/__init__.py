"""What OpenAI's clients ask and are told, decided without touching anything."""
