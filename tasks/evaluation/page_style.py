"""The style sheet of the report page: system fonts, light and dark, narrow and wide."""

STYLE = """
:root { color-scheme: light dark;
  --ground: #f6f7f8; --card: #ffffff; --ink: #16202b; --soft: #55616e; --rule: #dfe3e8;
  --shade: #aeb8c2; --good: #146c3c; --good-ground: #e3f4ea; --bad: #a8201a; --bad-ground: #fdeaea;
  --teacher: #a85a00; --linear: #5f6b7a; --stage: #2b62c9; --candidate: #13784a; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #101418; --card: #181e24; --ink: #e8edf2; --soft: #a3afbb; --rule: #313a44;
  --shade: #46525e; --good: #6fdc9f; --good-ground: #12321f; --bad: #ff9b94; --bad-ground: #421a1a;
  --teacher: #f0a24b; --linear: #a7b2bf; --stage: #7fa9f7; --candidate: #53cf92; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: clamp(1.5rem, 5vw, 2.2rem); line-height: 1.2; margin: 6px 0 8px; }
h2 { font-size: 1.25rem; margin: 0 0 4px; }
h3 { font-size: .95rem; margin: 0 0 8px; }
p { margin: 0 0 12px; max-width: 75ch; }
a { color: var(--stage); }
code { font: .875em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
.soft, figcaption, .caption { color: var(--soft); font-size: .875rem; }
.badge { display: inline-block; padding: 2px 10px; border-radius: 99px; font-weight: 600;
  font-size: .875rem; }
.passed { color: var(--good); background: var(--good-ground); }
.refused { color: var(--bad); background: var(--bad-ground); }
.warning { border-left: 4px solid var(--bad); background: var(--bad-ground); padding: 10px 14px;
  border-radius: 4px; max-width: none; }
nav ul { display: flex; flex-wrap: wrap; gap: 4px 16px; padding: 0; margin: 16px 0 24px;
  list-style: none; font-size: .9rem; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 12px;
  padding: 20px; margin: 0 0 20px; scroll-margin-top: 12px; }
.tiles { display: grid; gap: 12px; margin: 16px 0 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 158px), 1fr)); }
.tiles div { background: var(--card); border: 1px solid var(--rule); border-radius: 12px;
  padding: 14px 16px; }
.tiles dt { color: var(--soft); font-size: .875rem; }
.tiles dd { margin: 0; font-size: 1.5rem; white-space: nowrap; font-weight: 650; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.tiles dd.small { font-size: .8125rem; font-weight: 400; line-height: 1.4; white-space: normal;
  color: var(--soft); }
.tiles + p { margin-top: 12px; }
.charts { display: grid; gap: 24px; margin: 16px 0 8px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
figure { margin: 0; min-width: 0; max-width: 420px; }
.pair { grid-template-columns: minmax(0, 1fr); }
@media (min-width: 880px) { .pair { grid-template-columns: minmax(0, 400px) minmax(0, 1fr); } }
svg { display: block; width: 100%; height: auto; overflow: visible; }
.scroll { overflow-x: auto; margin: 12px 0; background:
    linear-gradient(var(--card), var(--card)) 0 0 / 20px 100% no-repeat local,
    linear-gradient(var(--card), var(--card)) 100% 0 / 20px 100% no-repeat local,
    linear-gradient(to left, var(--shade), transparent) 100% 0 / 12px 100% no-repeat,
    linear-gradient(to right, var(--shade), transparent) 0 0 / 12px 100% no-repeat; }
.scroll:focus-visible { outline: 2px solid var(--stage); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums;
  min-width: min(100%, 640px); }
.caption { margin: 14px 0 0; } .caption + .scroll { margin-top: 2px; }
.charts > div { min-width: 0; } .charts .caption { margin-top: 0; }
th, td { padding: 6px 12px 6px 0; text-align: right; border-bottom: 1px solid var(--rule);
  white-space: nowrap; vertical-align: top; }
th:first-child, td:first-child, .words { text-align: left; }
.words { white-space: normal; min-width: 12ch; }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
tbody th { font-weight: 500; white-space: normal; min-width: 12ch; overflow-wrap: anywhere; }
tr.candidate th, tr.candidate td { font-weight: 700; }
.yes { color: var(--good); } .no { color: var(--bad); font-weight: 700; }
details { margin: 12px 0 0; } summary { cursor: pointer; color: var(--soft); font-size: .875rem; }
.facts { padding-left: 20px; margin: 8px 0 12px; } .facts li { margin: 2px 0; max-width: 80ch; }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 0; margin: 12px 0 0;
  list-style: none; font-size: .875rem; color: var(--soft); }
.key i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; }
.flow { display: flex; height: 22px; border-radius: 6px; overflow: hidden; gap: 2px;
  margin: 12px 0 4px; }
.flow span { min-width: 2px; }
@media (max-width: 520px) { main { padding: 16px 12px 48px; } section { padding: 14px 12px; } }
text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  fill: var(--ink); }
text.tick, text.label { fill: var(--soft); }
text.mid { text-anchor: middle; } text.end { text-anchor: end; }
text.name.mid { font-weight: 600; paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
.grid { stroke: var(--rule); } .axis { stroke: var(--soft); }
.ideal { stroke: var(--soft); stroke-dasharray: 4 4; }
.front { fill: none; stroke: var(--stage); stroke-width: 1.75; opacity: .55; }
.dot { stroke: var(--card); stroke-width: 1.5; }
.curve { fill: none; stroke-width: 2; } .share { opacity: .35; }
""" + "".join(
    f"text.name.mid.{k}, .dot.{k}, .bar.{k}, .share.{k} {{ fill: var(--{k}); }} "
    f".curve.{k} {{ stroke: var(--{k}); }} .fill-{k} {{ background: var(--{k}); }}\n"
    for k in ("teacher", "linear", "stage", "candidate", "good", "bad")
)
