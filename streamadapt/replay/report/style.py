"""Style rules of the page around the drawings."""

from __future__ import annotations

from streamadapt.replay.report.drawing import SCALE_LIGHT, drawing_css

_PAGE = """
*{box-sizing:border-box}
body{margin:0;background:var(--band);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}
main{max-width:1000px;margin:0 auto;padding:24px 16px 48px}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 6px}
h2{font-size:1.25rem;line-height:1.3;margin:28px 0 8px}
h3,section>h2{font-size:1.05rem;margin:0 0 10px}
h3,h4{font-size:1rem}figure+h3,figure+h4{margin:18px 0 8px}
.lead{margin:0 0 12px;font-size:1.1rem;max-width:46em}
.sub{margin:0 0 20px;color:var(--soft)}
section{background:var(--back);border:1px solid var(--rule);border-radius:10px;
padding:18px 20px;margin:0 0 16px;min-width:0}
figure{margin:0}figure svg{display:block;width:100%;height:auto}
.narrow{display:none}
.note{color:var(--soft);font-size:.875rem;margin:10px 0 0;max-width:60em}
.scroll{overflow-x:auto;max-width:100%}
.scroll:focus-visible,summary:focus-visible{outline:2px solid var(--good);outline-offset:2px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;min-width:100%}
caption{text-align:left;color:var(--soft);font-size:.8rem;padding:0 0 6px;position:sticky;left:0}
th,td{padding:6px 12px;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}
thead th{color:var(--soft);font-size:.875rem;font-weight:600;vertical-align:bottom}
thead th:not(:first-child){max-width:11em;white-space:normal}
th:first-child{text-align:left;position:sticky;left:0;background:var(--back)}
tbody th{font-weight:500}
th small{display:block;color:var(--soft);font-weight:400;font-size:.8rem}
.total th,.total td{border-top:2px solid var(--rule)}
tbody tr:last-child>*{border-bottom:0}
details{margin:12px 0 0}summary{cursor:pointer;color:var(--soft);font-size:.9rem;padding:4px 0}
.remarks{margin:0;padding-left:1.2em}.remarks li{margin:4px 0}
.events{margin:0;padding-left:1.6em;overflow-wrap:anywhere}
.events li{margin:2px 0}.when{color:var(--soft);font-variant-numeric:tabular-nums}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:4px 20px;margin:0;
font-size:.925rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
@media (max-width:640px){main{padding:16px 10px 32px}section{padding:14px 12px}
.wide{display:none}.narrow{display:block}th,td{padding:6px 8px}
th:first-child{max-width:38vw;white-space:normal}
dl{grid-template-columns:minmax(0,1fr);gap:0}dd{margin:0 0 8px}}
@media print{body{background:none}section{break-inside:avoid}}
"""


def page_css() -> str:
    """All rules of a report."""
    shades = "".join(
        f".shade-{index}{{background:var(--d{index})}}" for index in range(len(SCALE_LIGHT))
    )
    return drawing_css() + _PAGE.replace("\n", "") + shades
