import java.io.Reader;
import java.util.List;
import javax.script.AbstractScriptEngine;
import javax.script.Bindings;
import javax.script.ScriptContext;
import javax.script.ScriptEngine;
import javax.script.ScriptEngineFactory;
import javax.script.SimpleBindings;

/**
 * The "JavaScript" that SPICE indents its results with before it writes them.
 *
 * <p>SPICE asks Java's own engine to evaluate {@code result = JSON.stringify(JSON.parse(jsonString),
 * null, 2)}. Java lost that engine in version 15, and SPICE fails without one after all its work is
 * done. This one answers every script with the text it was given, which is JSON already.
 *
 * <p>It is compiled into spice_engine.jar, since the runtime has no compiler:
 *
 * <pre>
 * javac --release 11 -g:none -d classes JsonEngine.java
 * mkdir -p classes/META-INF/services
 * echo JsonEngine &gt; classes/META-INF/services/javax.script.ScriptEngineFactory
 * jar --create --no-manifest --file spice_engine.jar -C classes .
 * </pre>
 */
public final class JsonEngine extends AbstractScriptEngine implements ScriptEngineFactory {
  @Override
  public Object eval(String script, ScriptContext context) {
    Object json = context.getAttribute("jsonString");
    context.setAttribute("result", json, ScriptContext.ENGINE_SCOPE);
    return json;
  }

  @Override
  public Object eval(Reader script, ScriptContext context) {
    return eval("", context);
  }

  @Override
  public Bindings createBindings() {
    return new SimpleBindings();
  }

  @Override
  public ScriptEngineFactory getFactory() {
    return this;
  }

  @Override
  public ScriptEngine getScriptEngine() {
    return new JsonEngine();
  }

  @Override
  public List<String> getNames() {
    return List.of("JavaScript");
  }

  @Override
  public String getEngineName() {
    return "JsonEngine";
  }

  @Override
  public String getEngineVersion() {
    return "1";
  }

  @Override
  public String getLanguageName() {
    return "JSON";
  }

  @Override
  public String getLanguageVersion() {
    return "1";
  }

  @Override
  public List<String> getExtensions() {
    return List.of();
  }

  @Override
  public List<String> getMimeTypes() {
    return List.of();
  }

  @Override
  public Object getParameter(String key) {
    return null;
  }

  @Override
  public String getMethodCallSyntax(String object, String method, String... arguments) {
    throw new UnsupportedOperationException();
  }

  @Override
  public String getOutputStatement(String text) {
    throw new UnsupportedOperationException();
  }

  @Override
  public String getProgram(String... statements) {
    throw new UnsupportedOperationException();
  }
}
