"use strict";
// The charts, drawn by plotly.js. Numbers come ready: nothing is computed here.
(() => {
  const { data, state, byId } = report;
  const AXES = {
    step: "optimizer steps",
    completions: "completions sampled, drafts included",
    tokens: "tokens generated, drafts included",
    seconds: "seconds since the start",
  };
  const DASHES = ["solid", "dot", "dashdot", "longdash"];
  const FEW_POINTS = 15;
  const CONFIG = {
    displaylogo: false,
    responsive: true,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };
  const settings = new Map(data.settings.map((setting) => [setting.name, setting]));
  const charts = new Map(data.charts.map((chart) => [chart.metric, chart]));
  let colours = {};

  function readColours() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    colours = {
      text: read("--text"), muted: read("--muted"), line: read("--line"), card: read("--card"),
      series: [0, 1, 2, 3, 4, 5, 6, 7].map((number) => read(`--c${number}`)),
    };
  }

  const faded = (hex, alpha) =>
    `rgba(${[1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)).join(",")},${alpha})`;
  // plotly.js reads a little HTML in labels; a name is a name.
  const label = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

  function pen(name) {
    const setting = settings.get(name);
    return {
      colour: colours.series[setting.colour],
      dash: setting.plain ? "dash" : DASHES[setting.dash % DASHES.length],
    };
  }

  function layout(extra) {
    const axis = { gridcolor: colours.line, zerolinecolor: colours.line, linecolor: colours.line, automargin: true };
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colours.text },
      margin: { l: 44, r: 10, t: 12, b: 40 },
      showlegend: false,
      hoverlabel: { bgcolor: colours.card, bordercolor: colours.line, font: { color: colours.text }, namelength: -1 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colours.muted, activecolor: colours.text },
      ...extra,
      xaxis: { ...axis, ...extra.xaxis },
      yaxis: { ...axis, ...extra.yaxis },
    };
  }

  function traces(curve) {
    const lines = (state.smooth && curve.smooth) || curve.raw;
    const { colour, dash } = pen(curve.setting);
    const found = [];
    const add = (kind, x, y, more) =>
      found.push({ type: "scatter", x, y, name: label(curve.setting), meta: { kind, setting: curve.setting }, ...more });
    const x = lines.mean.x[state.axis];
    if (x && lines.mean.low) {
      add("band", x.concat([...x].reverse()), lines.mean.high.concat([...lines.mean.low].reverse()), {
        mode: "lines", fill: "toself", fillcolor: faded(colour, 0.14), line: { width: 0 }, hoverinfo: "skip",
      });
    }
    if (state.seeds && curve.seeds.length > 1) {
      for (const line of lines.seeds) {
        if (line.x[state.axis]) {
          add("seed", line.x[state.axis], line.y, {
            mode: "lines", line: { color: faded(colour, 0.45), width: 1, dash }, hoverinfo: "skip",
          });
        }
      }
    }
    if (x) {
      add("mean", x, lines.mean.y, {
        mode: x.length <= FEW_POINTS ? "lines+markers" : "lines",
        line: { color: colour, width: 2.4, dash },
        marker: { color: colour, size: 6 },
        customdata: lines.mean.low ? lines.mean.low.map((low, at) => [low, lines.mean.high[at]]) : undefined,
        hovertemplate: lines.mean.low ? "%{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]" : "%{y:.3f}",
      });
    }
    return found;
  }

  function drawCurves(figure, chart) {
    const mine = chart.curves.filter((curve) => curve.task === state.task && !state.hidden.has(curve.setting));
    // Bands below seeds below means, whatever the order of the settings.
    const order = ["band", "seed", "mean"];
    const drawn = mine.flatMap(traces).sort((a, b) => order.indexOf(a.meta.kind) - order.indexOf(b.meta.kind));
    const without = mine.filter((curve) => !curve.raw.mean.x[state.axis]).map((curve) => curve.setting);
    const missing = figure.querySelector(".missing");
    missing.hidden = mine.length > 0 && !without.length;
    missing.textContent = without.length ? `Not recorded against ${state.axis}: ${without.join("; ")}.` : "No values here.";
    return Plotly.react(
      figure.querySelector(".plot"),
      drawn,
      layout({
        hovermode: "x unified",
        xaxis: { title: { text: AXES[state.axis], font: { size: 11, color: colours.muted } }, rangemode: "tozero" },
        yaxis: chart.share ? { range: [-0.03, 1.03] } : {},
      }),
      CONFIG,
    );
  }

  function drawHeldOut(figure) {
    const chosen = byId("held-out-metric").value;
    const measure = data.held_out.find((one) => one.metric === chosen);
    const rows = measure.rows.filter((row) => row.task === state.task && !state.hidden.has(row.setting)).reverse();
    const place = figure.querySelector(".plot");
    const narrow = place.clientWidth < 560;
    // A class would need a style for each number of rows; the CSSOM is what a strict policy leaves.
    place.style.height = `${90 + (narrow ? 46 : 34) * Math.max(1, rows.length)}px`;
    const found = [];
    rows.forEach((row, at) => {
      const { colour } = pen(row.setting);
      const plain = settings.get(row.setting).plain;
      found.push({
        type: "scatter", mode: "markers", x: row.values, y: row.values.map(() => at), hovertemplate: "one seed: %{x:.3f}<extra></extra>",
        marker: { color: faded(colour, 0.5), size: 7 }, name: label(row.setting), meta: { kind: "seed", setting: row.setting },
      });
      found.push({
        type: "scatter", mode: "markers", x: [row.mean], y: [at], name: label(row.setting), meta: { kind: "mean", setting: row.setting },
        marker: { color: plain ? colours.card : colour, size: 12, line: { color: colour, width: 2.5 } },
        error_x: row.low === null ? undefined : {
          type: "data", symmetric: false, array: [row.high - row.mean], arrayminus: [row.mean - row.low], color: colour, thickness: 2, width: 6,
        },
        hovertemplate: "mean %{x:.3f}" + (row.low === null ? "" : ` [${row.low.toFixed(3)}, ${row.high.toFixed(3)}]`) + "<extra></extra>",
      });
    });
    return Plotly.react(
      place,
      found,
      layout({
        hovermode: "closest",
        xaxis: { title: { text: `${label(measure.title)}${narrow ? "<br>" : "; "}filled: refined, open: plain`, font: { size: 11, color: colours.muted } } },
        yaxis: {
          tickvals: rows.map((_, at) => at),
          ticktext: rows.map((row) => label(row.setting).split(" · ").join(narrow ? "<br>" : " · ")),
          range: [-0.6, Math.max(rows.length, 1) - 0.4], zeroline: false, tickfont: { size: narrow ? 10 : 12 },
        },
      }),
      CONFIG,
    );
  }

  // One figure after another, so that the page answers meanwhile; a later change begins anew.
  let turn = 0;
  async function draw() {
    const mine = ++turn;
    document.body.dataset.drawn = "";
    for (const figure of document.querySelectorAll("figure")) {
      if (figure.id === "held-out") await drawHeldOut(figure);
      else if (figure.id === "other") await drawOther(figure);
      else await drawCurves(figure, charts.get(figure.dataset.metric));
      await new Promise((resume) => setTimeout(resume));
      if (mine !== turn) return;
    }
    document.body.dataset.drawn = "yes";
  }

  function drawOther(figure) {
    const chart = charts.get(byId("other-metric").value);
    byId("other-note").textContent = chart.note;
    return drawCurves(figure, chart);
  }

  const again = () => { readColours(); draw(); };
  report.onChange(draw);
  for (const [id, figure, redraw] of [["other-metric", "other", drawOther], ["held-out-metric", "held-out", drawHeldOut]]) {
    if (byId(id)) byId(id).addEventListener("change", () => redraw(byId(figure)));
  }
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", again);
  again();
})();
