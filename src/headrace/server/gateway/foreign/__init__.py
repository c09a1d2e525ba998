"""Pass-through to replicas that are not ours: any server that speaks OpenAI's HTTP."""
