"""The vocabulary law of Tao et al. 2024 (arXiv:2407.13623).

Losses per token of different vocabularies do not compare, so the paper normalises by the unigram model of the same
vocabulary: L_u is the mean of log p_unigram - log p_model, negative for any model worth training. What is fitted here
is its exponential, the model's perplexity as a fraction of the unigram's, a positive number whose log residuals are
the residuals of L_u.
"""

from scaling.laws.law import Law, Parameter, exponent, namespace, positive


def _ratio(params_nonembedding, params_vocabulary, tokens, E, A_1, A_2, B, alpha_1, alpha_2, beta):
    xp = namespace(params_nonembedding, params_vocabulary, tokens, E)
    terms = A_1 * params_nonembedding**-alpha_1 + A_2 * params_vocabulary**-alpha_2 + B * tokens**-beta
    return xp.exp(terms - E)


VOCABULARY = Law(
    name="vocabulary",
    formula=_ratio,
    columns=("params_nonembedding", "params_vocabulary", "tokens"),
    parameters=(
        Parameter("E", low=0.0, high=1e3, starts=(3.0, 6.0), meaning="most that can be gained on the unigram, nats"),
        positive("A_1", starts=(1e3,), meaning="weight of the non-vocabulary parameters"),
        positive("A_2", starts=(1e3,), meaning="weight of the vocabulary parameters"),
        positive("B", starts=(1e4,), meaning="weight of the data term"),
        exponent("alpha_1", starts=(0.3, 0.5), meaning="exponent of non-vocabulary parameters"),
        exponent("alpha_2", starts=(0.4, 0.7), meaning="exponent of vocabulary parameters"),
        exponent("beta", starts=(0.3, 0.5), meaning="exponent of tokens"),
    ),
    source="Tao et al. 2024, arXiv:2407.13623, approach 3, which sets α_1 = β",
    text="L_u = -E + A_1 / N_nv^α_1 + A_2 / N_v^α_2 + B / D^β",
    target="perplexity_ratio",
)

LAWS = (VOCABULARY,)
