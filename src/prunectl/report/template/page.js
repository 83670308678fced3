"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // One chart after another: each asks for the width of its place, which the one before may change.
  let queue = Promise.resolve();

  class Chart {
    constructor(place, charts, section) {
      this.place = place;
      this.charts = charts;
      this.section = section;
      this.embedded = null;
      place.addEventListener("change", () => this.draw());
    }

    chosen() {
      const inputs = this.place.querySelectorAll("input[type=radio]:checked");
      const chart = this.charts[Array.from(inputs, (input) => input.value).join("|")];
      // A copy, since Vega marks the rows that it is given.
      const rows = ([name, table]) => [name, structuredClone(data.tables[table])];
      return { ...chart, datasets: Object.fromEntries(Object.entries(chart.datasets).map(rows)) };
    }

    draw() {
      queue = queue.then(() => this.drawNow()).catch((error) => console.error(error));
      return queue;
    }

    async drawNow() {
      if (this.embedded) this.embedded.finalize();
      const name = dark.matches ? "dark" : "light";
      this.embedded = await vegaEmbed(this.place.querySelector(".chart"), this.chosen(), {
        actions: { export: true, source: false, compiled: false, editor: false },
        ast: true,  // expressions are interpreted: the page's policy forbids eval
        config: data.themes[name],
        renderer: "svg",
        tooltip: { theme: name },
      });
      await this.section.tell(this.embedded.view);
      await this.settle();
    }

    // The columns of a legend depend on the chart's width: once that is known, make room for the rows.
    async settle() {
      if (!this.embedded) return;
      const { view } = this.embedded;
      await view.runAsync();
      await view.resize().runAsync();
    }
  }

  class Section {
    constructor(place, facts) {
      this.facts = facts;
      this.input = place.querySelector(".slider input");
      this.output = place.querySelector(".slider output");
      this.buttons = Array.from(place.querySelectorAll(".legend button"));
      const figures = place.querySelectorAll("figure");
      this.charts = Array.from(figures, (figure, i) => new Chart(figure, facts.figures[i], this));
      if (this.input) this.input.addEventListener("input", () => this.tellAll());
      for (const button of this.buttons) {
        button.addEventListener("click", () => {
          button.setAttribute("aria-pressed", String(button.ariaPressed !== "true"));
          this.tellAll();
        });
      }
    }

    // Tell one view where the slider stands, and what is chosen in the legend.
    tell(view) {
      const { slider, legend } = this.facts;
      if (slider) view.signal(slider.parameter, Number(this.input.value));
      if (legend) {
        const pressed = this.buttons.filter((button) => button.ariaPressed === "true");
        view.signal(legend.parameter, pressed.map((button) => legend.names[Number(button.value)]));
      }
      return view.runAsync();
    }

    tellAll() {
      if (this.input) this.output.textContent = this.facts.slider.texts[Number(this.input.value)];
      for (const chart of this.charts) if (chart.embedded) this.tell(chart.embedded.view);
    }
  }

  const places = document.querySelectorAll("section[data-section]");
  const sections = Array.from(places, (place, i) => new Section(place, data.sections[i]));
  const drawAll = () => Promise.all(sections.flatMap((s) => s.charts.map((c) => c.draw())));
  for (const section of sections) section.tellAll();  // a reload keeps where a slider stands
  dark.addEventListener("change", drawAll);
  const settleAll = () => sections.forEach((s) => s.charts.forEach((c) => c.settle()));
  addEventListener("resize", () => requestAnimationFrame(settleAll));  // after Vega's own listener
  drawAll().then(() => { document.documentElement.dataset.drawn = "yes"; });
})();
