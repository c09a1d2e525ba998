"""OpenAI's HTTP API as structs: what may be asked, what is answered. Knows no engine."""
