"""The models of the app, and what training them needs."""
