"""Studies: each answers one question, with a run and a report. No other room but the command line imports them."""
