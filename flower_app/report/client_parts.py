"""What the page says of a run over clients, each of whom is hidden as a whole."""

PROMISES = """{% if c.private and c.epsilon is not none %}
<tr><th>Client-level differential privacy, ε = {{ number(c.epsilon) }} at
δ = {{ g(c.delta) }}, {{ c.adjacency }}</th>
<td>{{ c.unit }}, in {{ c.covers }}</td>
<td>everybody who sees the model, in every round or at the end{%
if reported and counted %}, and the accuracy that nodes measured{% endif %}{%
if c.sampling_rate < 1 and c.sampling != "cyclic-groups" %}, and does not learn
who was drawn{% endif %}</td>
<td>{{ c.trusted }}</td></tr>
{% else %}
<tr><th>Client-level differential privacy: not in this run</th>
<td>–</td><td>–</td><td class="why">something was released without fresh noise</td></tr>
{% endif %}
<tr><th>Record-level differential privacy:
{% if r.epsilon_max is none %}not in this run
{% else %}ε ≤ {{ number(r.epsilon_max) }} at δ = {{ g(r.delta) }}{% endif %}</th>
{% if r.epsilon_max is none %}
<td>–</td><td>–</td><td class="why">{{ r.reason }}</td>
{% else %}
<td>{{ r.unit }}</td><td>the server too</td>
<td>{{ r.trusted }}. It is {{ r.note }}</td>
{% endif %}</tr>
"""

FURTHER_PROMISES = """{% if t and t.accuracy is defined %}
<tr><th>Encrypted test-time round: nodes tested the model on images of their own, under keys of
their own</th>
<td>a node: its test images and labels; {{ t.node_noise }}</td>
<td>the server, which follows the protocol</td>
<td>the node's own machine</td></tr>
{% endif %}
{% if s %}
<tr><th>Secure aggregation: the sum of at least
{{ s.min_clients }} clients' updates is opened, or nothing{%
if s.aborted_rounds %}
({{ s.aborted_rounds|length }} rounds opened nothing){% endif %}.
{% if not distributed %}The server adds the noise, and sees the sum without it{% elif
s.epsilon_against_server is not none %}Clients add the noise: ε =
{{ number(s.epsilon_against_server) }} against the server, for what a client
holds{% if reported %}, its report on the finished model apart{% endif %}{%
else %}Clients add the noise to the sum. Against the server ε = ∞ all the same: {% if
not c.private %}the run is not private{% else %}what else {{ c.covers }} released, such as nodes'
reports of an encrypted test-time round, the server saw before it added the noise{% endif
%}{% endif %}</th>
<td>each client: its own update</td>
<td>a server that is {{ s.server }}, together with
{{ g(100 * s.max_corrupt_fraction) }} % of a round's clients</td>
<td>the client's own machine and the code that runs
there</td></tr>
{% else %}
<tr><th>No client moves a round's sum by more than S = {{ g(c.clipping_norm) }}</th>
<td>the model, and all other clients</td>
<td>malicious and broken clients</td>
<td>the server, which bounds what it receives</td></tr>
{% endif %}
"""

TRUST = """<tr><th>Each client</th><td>its own data; every model it was sent</td>
<td>{% if m.deployed %}keep its own data{% if
s %}; follow the protocol and bound its own update, all but
{{ g(100 * s.max_corrupt_fraction) }} % of a round's clients{% else
%}; nothing towards others{% endif %}{% else %}nothing: in this simulation all clients were
processes on the one machine that held all data{% endif %}</td></tr>
<tr><th>The server</th><td>{% if s %}the sum
of each round's updates{% if distributed %}, with the clients' noise in it{% endif %}{% else
%}every drawn client's update in the clear{% endif %}, who was drawn,
and who answered{% if reported %}; of the encrypted test-time round each node's report, with the
node's own noise, and ciphertexts{% endif %}</td>
<td>{{ c.trusted|replace("the server, to ", "") }}; draw cohorts with
randomness that nobody foresees</td></tr>
"""

ALTERNATIVES = """{% if alternatives %}
<h2 id="alternatives">What other settings would have cost</h2>
<p>The same run with one setting changed, at δ = {{ g(c.delta) }}. Less noise or more
rounds cost privacy; which of them would have helped the accuracy, nobody tried.</p>
<table class="costs"><thead><tr><th>If there had been</th><th>ε</th></tr></thead><tbody>
<tr><th>the training of this run, by itself and every round played once:
z = {{ "%.3f"|format(c.noise_multiplier) }}, q = {{ g(c.sampling_rate) }},
{{ c.rounds }} rounds</th>
<td class="number"><strong>{{ number(own_epsilon) }}</strong></td></tr>
{% for change, cost in alternatives.items() %}<tr><th>{{ change }}</th>
<td class="number">{{ number(cost) }}</td></tr>
{% endfor %}</tbody></table>
{% endif %}

"""

NODES = """{% if t %}
<h2 id="nodes">Encrypted test-time round over the nodes</h2>
{% if t.skipped is defined %}<p class="warn">{{ "Held, and lost" if counted else "Not held" }}:
{{ t.skipped }}</p>{% else %}
<table><tbody>
<tr><th>Nodes</th><td>{{ n(t.nodes_asked) }} asked, about
{{ "{:,g}".format(t.nodes_answered) }} answered</td></tr>
<tr><th>Accuracy</th><td>{% if t.accuracy is none %}too few answered to tell{% else %}
{{ percent(t.accuracy) }}{% if t.accuracy_noise %}, with noise of standard deviation
{{ percent(t.accuracy_noise) }}{% endif %}, on images that only their nodes saw{% endif %}</td></tr>
<tr><th>Released</th><td>{{ t.release }}</td></tr>
<tr><th>Images</th><td>up to {{ t.images_per_node }} of each
node{% if t.ms_per_image is not none %}, {{ "%.1f"|format(t.ms_per_image) }} ms to evaluate
one{% endif %}</td></tr>
<tr><th>Bytes</th><td>{{ n(t.bytes_from_node) }} from a node that asks about so many
(keys and questions), {{ n(t.bytes_to_node) }} back</td></tr>
</tbody></table>{% endif %}
{% endif %}

"""

UNCOUNTED = """<li><strong>Other runs:</strong> this ε covers {{ c.covers }}. Runs with another
ledger on the same clients add to it.</li>
<li><strong>Runs that ended early:</strong> a round is paid before its result is used, so a run
that broke off has paid for what it released. A round that is played again is paid again.</li>
{% if reported and not counted %}<li><strong>The nodes' reports</strong>
of the encrypted test-time round: {{ t.release }}.</li>
{% endif -%}
<li><strong>Timing and errors:</strong> how long a round took and why a client failed are not
noised; they stay in the operator's log, which is not part of this folder.{% if not m.deployed %}
(The seconds of the whole simulation{{ ", since it was resumed," if m.resumed }} are in
<code>metrics.json</code>: its clients are not real.){% endif %}</li>
<li><strong>Groups:</strong> k clients together, for instance devices of one person, are protected
at k times this ε, and at a δ that is up to k·e<sup>(k−1)ε</sup> times as large.</li>
{% if s %}<li><strong>Poisoning:</strong> a client that lies can add anything to
a sum; the server cannot bound what it cannot see.</li>
{% else %}<li><strong>Poisoning</strong> is bounded (no client moves a round's sum by more than S),
not prevented.</li>
{% endif %}
"""

CHECK = """<tr><th>Sampling</th><td>{{ c.sampling }}, q = {{ g(c.sampling_rate) }} of
N = {{ n(c.population) }}: {{ "%.0f"|format(c.sampling_rate * c.population) }} clients
expected a round</td></tr>
<tr><th>Clipping norm</th><td>S = {{ g(c.clipping_norm) }}</td></tr>
<tr><th>Noise multiplier</th><td>{% if c.noise_multiplier is none %}–{% else %}z =
{{ "%.4f"|format(c.noise_multiplier) }}; σ = z·S on {% if distributed %}the sum of the fewest
clients, as the server sees it, without its colluders' shares{% else %}the sum{% endif %}{% endif
%}</td></tr>
"""
