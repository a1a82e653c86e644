"""What the screens read and the API does not, one module a noun: codes and numbers, no words. Changes nothing."""
