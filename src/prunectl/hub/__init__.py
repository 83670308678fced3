"""The Hugging Face Hub, both ways: nothing else talks to it."""
