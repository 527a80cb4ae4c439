"""The style of ``report.html``: for a desk and a phone, light and dark, and paper."""

STYLE = """:root { color-scheme: light dark; --ink: #1f2933; --soft: #5b6875; --line: #e1e5ea;
  --page: #f7f8fa; --card: #ffffff; --good: #23814f; --warn: #a8430c; --blue: #2460c0;
  --orange: #c2601a; --red: #c9372c; --grid: #e4e7eb; --shade: 36, 96, 192;
  --s1: #2b9462; --s2: #7fb23c; --s3: #e0b030; --s4: #e07b39; --s5: #c9372c; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #a3aeb9;
  --line: #35414d; --page: #161b22; --card: #1f2630; --good: #57d18d; --warn: #f0a35e;
  --blue: #7fb0ff; --orange: #f0a35e; --red: #ff8d85; --grid: #2d3742;
  --shade: 58, 110, 196; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); overflow-wrap: break-word;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.2rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; }
p, li { max-width: 46rem; } p { margin: .5rem 0; }
.soft { color: var(--soft); } .warn { color: var(--warn); }
nav { margin: 1rem 0 0; font-size: .93rem; line-height: 1.9; }
nav a { margin-right: 1rem; display: inline-block; }
a { color: var(--blue); }
.verdict { background: var(--card); border: 1px solid var(--line); border-radius: .7rem;
  padding: 1rem 1.2rem; margin: 1.2rem 0; }
.verdict > p:first-child { font-size: 1.12rem; margin: 0 0 .6rem; }
.verdict p { max-width: none; }
.scale { position: relative; margin: 1.9rem 0 1.7rem; }
.scale .bands { display: flex; height: .8rem; border-radius: .4rem; overflow: hidden;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.scale .tick { position: absolute; top: 1rem; transform: translateX(-50%); font-size: .8rem;
  color: var(--soft); white-space: nowrap; }
.scale .tick:first-of-type { transform: none; }
.scale .tick:last-of-type { transform: translateX(-100%); }
.scale .here { position: absolute; top: -1.75rem; transform: translateX(-50%); font-weight: 700;
  white-space: nowrap; font-variant-numeric: tabular-nums; }
.scale .needle { position: absolute; top: -.3rem; height: 1.4rem; width: 3px; margin-left: -1px;
  background: var(--ink); border-radius: 2px; print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
.figures { display: grid; gap: .8rem; margin: 1.2rem 0;
  grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); }
.figure { background: var(--card); border: 1px solid var(--line); border-radius: .7rem;
  padding: .9rem 1rem; }
.figure b { display: block; font-size: 1.55rem; font-variant-numeric: tabular-nums; }
.figure span { color: var(--soft); font-size: .88rem; }
figure { margin: 1rem 0; background: var(--card); border: 1px solid var(--line);
  border-radius: .7rem; padding: .6rem; max-width: 41rem; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .88rem; padding: .4rem .4rem 0; }
table { border-collapse: collapse; width: 100%; background: var(--card); font-size: .93rem;
  margin: .6rem 0; }
th, td { text-align: left; vertical-align: top; padding: .5rem .7rem;
  border: 1px solid var(--line); }
th { font-weight: 600; } tbody th { width: 24%; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
table.costs th { width: 60%; } table.costs tbody th { font-weight: 400; }
.bar { display: block; height: .55rem; border-radius: .2rem; background: rgb(var(--shade));
  margin-top: .3rem; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.sideways { overflow-x: auto; }
table.confusion { width: auto; font-size: .85rem; }
table.confusion th, table.confusion td { text-align: right; padding: .3rem .45rem; width: auto;
  font-variant-numeric: tabular-nums; print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
code { font-size: .9em; overflow-wrap: anywhere; }
details { margin: .6rem 0; } details summary { cursor: pointer; color: var(--blue); }
ul { padding-left: 1.2rem; } li { margin: .35rem 0; }
@media (max-width: 42rem) {
  main { padding: 1.2rem .9rem 3rem; } h1 { font-size: 1.4rem; }
  tbody th { width: 40%; } td { overflow-wrap: anywhere; } th, td { padding: .45rem .5rem; }
  .scale .minor { display: none; }
  .verdict { padding: .9rem .9rem; }
  table.stack { background: none; } table.stack thead { display: none; }
  table.stack tr { display: block; border: 1px solid var(--line); border-radius: .6rem;
    margin: .7rem 0; padding: .5rem .8rem; background: var(--card); }
  table.stack th, table.stack td { display: block; width: auto; border: 0; padding: .25rem 0; }
  table.stack td::before { display: block; font-size: .78rem; color: var(--soft); }
  .promises td:nth-of-type(1)::before { content: "To whom"; }
  .promises td:nth-of-type(2)::before { content: "Against whom"; }
  .promises td:nth-of-type(3)::before { content: "If these keep their word"; }
  .promises td.why::before { content: "Why"; }
  .trust td:nth-of-type(1)::before { content: "Held or saw"; }
  .trust td:nth-of-type(2)::before { content: "Was trusted to"; }
}
@page { margin: 16mm 15mm; }
@media print {
  :root { --page: #ffffff; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; } nav { display: none; }
  p, li { max-width: none; orphans: 3; widows: 3; }
  h2 { break-after: avoid; margin-top: 1.6rem; }
  th, td { padding: .22rem .45rem; font-size: 9pt; } table { margin: .4rem 0; }
  .figure b { font-size: 1.2rem; } .figure { padding: .5rem .7rem; }
  details table:not(.confusion) { font-size: 8pt; } .short { columns: 2; }
  tr, figure, .figure, .verdict, li { break-inside: avoid; }
  figure { max-width: 32rem; }
  a { color: inherit; text-decoration: none; }
  details summary { color: inherit; } details::details-content { content-visibility: visible;
    block-size: auto; }
}
"""
