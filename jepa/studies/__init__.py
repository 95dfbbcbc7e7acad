"""Studies: each answers one question, and nothing else imports it. A command of the command line runs it."""
