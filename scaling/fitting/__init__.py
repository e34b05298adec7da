"""The fitter: a law and a table in, parameters and the evidence that they are the optimum out."""
