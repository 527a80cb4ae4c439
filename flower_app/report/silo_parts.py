"""What the page says of a run over silos, each of whose persons, or records, is hidden."""

OBSERVERS = """<h2 id="observers">ε against whom</h2>
<p>The figure of this page is the last of these: the noise is sized for it before the run.</p>
<table><thead><tr><th>Who looks</th><th>What they see</th><th>ε</th></tr></thead><tbody>
{% for observer in observers %}<tr><th>{{ observer.who }}</th><td>{{ observer.sees }}</td>
<td class="number">{{ number(observer.epsilon) }}</td></tr>
{% endfor %}</tbody></table>
<p>At δ = {{ g(c.delta) }} in each. Each silo draws its {{ one }}s by coins of its own, which not
even the server sees, so that sampling amplifies against the server too. Against whoever does learn
the draws it is <strong>ε = {{ number(c.epsilon_without_amplification) }}</strong>.</p>

"""

PROMISES = """<tr><th>{{ one|capitalize }}-level differential privacy,
ε = {{ number(c.epsilon) }} at δ = {{ g(c.delta) }}, {{ c.adjacency }}</th>
<td>{{ c.unit }}, in {{ c.covers }}</td>
<td>everybody: who sees the models, the other silos, the server, and the server together with
{{ colluding }}</td>
<td>{{ c.trusted }}</td></tr>
<tr><th>Secure aggregation: the sum of at least {{ s.min_clients }} silos is opened, or nothing{%
if s.aborted_rounds %} ({{ s.aborted_rounds|length }} steps opened nothing){% endif %}</th>
<td>each silo: its own part of every sum, noise included</td>
<td>a server that is {{ s.server }}, together with {{ colluding }}</td>
<td>the silo's own machine and the code that runs there</td></tr>
<tr><th>No {{ one }} moves a step's sum by more than S = {{ g(c.clipping_norm) }}, nor the
noise on it is less than z·S with z = {{ number(c.noise_multiplier) }}</th>
<td>every {{ one }} of a silo that does not collude</td><td>all of those above</td>
<td>the fewest honest silos, {{ c.honest }}: each adds its share</td></tr>
"""

TRUST = """<tr><th>Each silo</th><td>its own records, draws and share of the noise; every model</td>
<td>{% if m.deployed %}follow the protocol and keep its draws, its share and its keys to itself; at
most {{ colluding_silos }} may pool them with the server. Not to stay away from a step because of
whom it holds{% else %}nothing: in this simulation all silos were processes on the one machine that
held all records{% endif %}</td></tr>
<tr><th>The owner of a silo's records</th><td>the policy and the ledger on the silo's own node</td>
<td>{% if m.deployed %}keep the ledger, and put no older copy back; it declines what the policy does
not allow, whatever the server asks{% else %}nothing: a simulated silo allows what the run asks
for{% endif %}</td></tr>
<tr><th>The server</th><td>the opened sums, with their noise; masked messages; who is online, and
how long each silo takes</td>
<td>follow the protocol, and not play silos of its own. It adds no noise and draws
nobody</td></tr>
"""

NOISE = """<h2 id="noise">Noise in shares</h2>
<p>Each silo adds a share of discrete Gaussian noise to its own sum. Any {{ c.honest }} shares
make up the noise that was promised: those of the fewest silos whose sum is opened,
{{ s.min_clients }}, without {{ colluding }}. Standard deviation on each number of a step's average,
over p·N = {{ "%.0f"|format(c.sampling_rate * c.population) }} {{ one }}s, as a part of S:</p>
<table class="costs"><thead><tr><th>If the noise were added by</th><th>of S</th></tr></thead><tbody>
{% for who, share in c.noise_of_average.items() %}<tr><th>{{ who }}</th>
<td class="number">{{ "%.3g"|format(100 * share) }} %<span class="bar"
style="width: {{ "%.1f"|format(100 * share / c.noise_of_average.values()|max) }}%"></span></td></tr>
{% endfor %}</tbody></table>
<p>The longer the bar, the less a step teaches. Secure aggregation is why the second is close to the
first: without it each silo would have to hide its {{ one }}s by itself, as in the third.</p>
{% if tested %}
<p>The silos tested the model on test records of their own, and only the sums of their counts were
opened, with noise (z = {{ g(config["evaluation-noise-multiplier"]) }}), which is in ε:</p>
<table><thead><tr><th>After step</th><th>Right</th>
<th>Test {{ one }}s, about</th></tr></thead><tbody>
{% for step, told in tested.items() %}<tr><td class="number">{{ step }}</td>
<td class="number">{{ percent(told.accuracy) if told.accuracy is defined else "lost in the noise" }}
</td><td class="number">{{ n(told.persons|round|int) }}</td></tr>
{% endfor %}</tbody></table>
{% endif %}

"""

UNCOUNTED = """<li><strong>Other runs:</strong> this ε covers {{ c.covers }}. Runs with another
server's ledger on the same records add to it; a silo's own ledger counts them all.</li>
<li><strong>More colluders:</strong> with more silos than {{ colluding_silos }} in league with the
server, the noise of the others is less than was promised.</li>
<li><strong>A malicious server</strong>, which plays other silos itself or departs from the
protocol.</li>
<li><strong>One {{ one }} in two silos</strong> counts as two: each protects its part.</li>
<li><strong>How long a silo takes</strong> grows with the number of records it drew, and the server
sees it. <code>answer-seconds</code> in a silo's policy hides it.</li>
<li><strong>That a silo takes part</strong>, declines, or is away.</li>
<li><strong>What all records of a silo have in common</strong> may show: the model is there to learn
it. A silo as a whole is not hidden.</li>
<li><strong>Poisoning:</strong> a silo that lies can add anything to a sum; the server cannot bound
what it cannot see. That spoils the model, and nobody's privacy.</li>
"""

CHECK = """<tr><th>Sampling</th><td>{{ c.sampling }}, p = {{ g(c.sampling_rate) }} of about
N = {{ n(c.population) }} {{ one }}s, drawn by each silo among its own</td></tr>
<tr><th>Clipping norm</th><td>S = {{ g(c.clipping_norm) }}, of one {{ one }}'s gradient</td></tr>
<tr><th>Noise multiplier</th><td>z = {{ "%.4f"|format(c.noise_multiplier) }}; σ = z·S on the sum of
{{ c.honest }} silos, the fewest honest ones</td></tr>
"""
