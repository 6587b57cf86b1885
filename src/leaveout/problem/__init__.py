"""What is learnt: samples, what is said of them (the objective), and how a model is called."""
