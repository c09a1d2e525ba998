"""Hidden commands: the processes that the supervisor starts."""
