"""A namespace of the kinds of objects that Sage's users have."""

EIGHTEEN = """
R.<u, v> = QQ[]
I = R.ideal(u^2 + v, u*v - 1)
K.<a> = NumberField(x^3 - 2)
E = EllipticCurve([0, 1])
M = matrix(QQ, 40, range(1600))
MG = random_matrix(GF(5), 30)
G = graphs.PetersenGraph()
y = var('y')
expression = sin(y)^2 + exp(y)
f(t) = t^2 + y
def scaled(z): return factor_of_scaled * z
factor_of_scaled = 10
class Point:
    def __init__(self, at): self.at = at
    def norm(self): return scaled(self.at)
point = Point(4)
adding = lambda z: z + factor_of_scaled
import numpy as np
array = np.arange(1000000.0)
import pandas as pd
frame = pd.DataFrame({'a': [1, 2], 'b': ['x', 'y']})
padic = Zp(5)(17)
S.<q> = PowerSeriesRing(QQ)
series = 1/(1 - q) + O(q^10)
group = PermutationGroup([(1, 2, 3), (4, 5)])
picture = plot(sin(y), (y, 0, 1))
"""
"""Eighteen objects and what they are made of, 8 MB."""
