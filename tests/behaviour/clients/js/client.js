// What a JavaScript controller does with the namespaces and ConfigMaps of a tenant; one JSON object for each step.
// Arguments: a namespace of the tenant, one of another tenant. It ends when its watch has shown a namespace that joins.
import { CoreV1Api, KubeConfig, PatchStrategy, Watch, makeInformer, setHeaderOptions } from '@kubernetes/client-node';

const [namespace, foreign] = process.argv.slice(2);
const say = (step, value) => console.log(JSON.stringify({ step, value }));

const config = new KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(CoreV1Api);

const listed = await core.listNamespace();
say('listed', listed.items.map((item) => item.metadata.name));
say('read', (await core.readNamespace({ name: namespace })).status.phase);
say('refused', await core.readNamespace({ name: foreign }).then(() => 200, (error) => error.code));

const page = { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'page' }, data: { a: '1' } };
const one = { name: 'page', namespace };
const applied = await core.patchNamespacedConfigMap(
  { ...one, body: page, fieldManager: 'javascript' },
  setHeaderOptions('Content-Type', PatchStrategy.ServerSideApply),
);
say('applied', applied.data);
const patched = await core.patchNamespacedConfigMap(
  { ...one, body: { data: { b: '2' } } },
  setHeaderOptions('Content-Type', PatchStrategy.MergePatch),
);
say('patched', patched.data);
await core.deleteNamespacedConfigMap(one);

const informer = makeInformer(config, '/api/v1/namespaces', () => core.listNamespace());
const done = new Promise((resolve, reject) => {
  informer.on('add', (found) => {
    say('added', found.metadata.name);
    if (found.metadata.name !== namespace) resolve();
  });
  informer.on('error', reject);
});
await informer.start();
await done;
await informer.stop();

// The watch itself, from a version that the informer has not: with the state that there is.
const watch = new Watch(config);
const seen = await new Promise((resolve, reject) => {
  const types = [];
  watch.watch('/api/v1/namespaces', {}, (type, found) => {
    types.push(`${type} ${found.metadata.name}`);
    if (types.length === 2) resolve(types);
  }, reject).catch(reject);
});
say('watched', seen.sort());
process.exit(0);
