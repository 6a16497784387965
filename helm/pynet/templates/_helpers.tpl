{{- define "pynet.name" -}}
{{- .Release.Name | trunc 50 | trimAll "-." }}
{{- end }}

{{- define "pynet.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "pynet.name" .) }}
{{- end }}

{{/* For the admission policies: whether a request comes from an agent (CEL). */}}
{{- define "pynet.madeByAgent" -}}
request.userInfo.username == "system:serviceaccount:{{ .Release.Namespace }}:{{ include "pynet.serviceAccount" . }}"
{{- end }}

{{- define "pynet.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "pynet.selector" -}}
app.kubernetes.io/name: pynet
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* Labels of an object: "root", and perhaps "component" and "extra" (the user's; they never replace what selectors go by). */}}
{{- define "pynet.labels" -}}
{{- $ours := include "pynet.selector" .root | fromYaml }}
{{- with .component }}{{ $_ := set $ours "app.kubernetes.io/component" . }}{{ end }}
{{- $about := dict "app.kubernetes.io/version" .root.Chart.AppVersion "app.kubernetes.io/managed-by" .root.Release.Service }}
{{- $_ := set $about "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version) }}
{{- merge $ours (deepCopy (.extra | default dict)) (deepCopy (.root.Values.commonLabels | default dict)) $about | toYaml }}
{{- end }}

{{/* Labels and annotations of an object: as for pynet.labels, and "annotations". */}}
{{- define "pynet.metadata" -}}
labels: {{- include "pynet.labels" . | nindent 2 }}
{{- with merge (deepCopy (.annotations | default dict)) (deepCopy (.root.Values.commonAnnotations | default dict)) }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The agent's configuration: the user's, with the folders as they are mounted and /proc/sys where it can be written. */}}
{{- define "pynet.config" -}}
{{- include "pynet.checkConfig" . }}
{{- $cni := dict "confDir" .Values.hostPaths.cniConf "binDir" .Values.hostPaths.cniBin "ipamDir" (printf "%s/ipam" .Values.hostPaths.run) }}
{{- $ours := dict "cni" $cni "sysctls" (dict "root" "/host/proc/sys") "stateDir" .Values.hostPaths.state "runDir" .Values.hostPaths.run }}
{{- mergeOverwrite $ours (deepCopy (.Values.config | default dict)) | toYaml }}
{{- end }}

{{/* What no schema can say: two values that do not go together. Fails with both keys. */}}
{{- define "pynet.checkConfig" -}}
{{- $config := .Values.config | default dict }}
{{- $paths := .Values.hostPaths }}
{{- include "pynet.checkSame" (list "config.cni.confDir" (dig "cni" "confDir" "" $config) "hostPaths.cniConf" $paths.cniConf) }}
{{- include "pynet.checkSame" (list "config.cni.binDir" (dig "cni" "binDir" "" $config) "hostPaths.cniBin" $paths.cniBin) }}
{{- include "pynet.checkSame" (list "config.stateDir" (dig "stateDir" "" $config) "hostPaths.state" $paths.state) }}
{{- include "pynet.checkSame" (list "config.runDir" (dig "runDir" "" $config) "hostPaths.run" $paths.run) }}
{{- $ipam := dig "cni" "ipamDir" "" $config }}
{{- if and $ipam (not (hasPrefix (printf "%s/" $paths.run) $ipam)) }}
{{- fail (printf "config.cni.ipamDir is %q, which no pod of ours sees; allowed: a folder in hostPaths.run (%s)" $ipam $paths.run) }}
{{- end }}
{{- $root := dig "sysctls" "root" "" $config }}
{{- if and $root (ne $root "/host/proc/sys") }}
{{- fail (printf "config.sysctls.root is %q; allowed: nothing else than /host/proc/sys, where this chart mounts it" $root) }}
{{- end }}
{{- if eq (include "pynet.metricsPort" . | int) (include "pynet.healthPort" . | int) }}
{{- fail (printf "config.metrics.port and config.health.port are both %s; allowed: two different ports" (include "pynet.healthPort" .)) }}
{{- end }}
{{- $metric := dig "routes" "metric" 100 $config | int }}
{{- $buckets := dig "routes" "metricBuckets" 64 $config | int }}
{{- if ge (add $metric $buckets | int) 256 }}
{{- fail (printf "config.routes.metric is %d and config.routes.metricBuckets is %d; allowed: a sum below 256" $metric $buckets) }}
{{- end }}
{{- end }}

{{/* A folder that the user named twice: (key, value, key of the mount, its value). */}}
{{- define "pynet.checkSame" -}}
{{- if and (index . 1) (ne (index . 1) (index . 3)) }}
{{- fail (printf "%s is %q and %s is %q; set %s alone: the folder is mounted from there, and the configuration follows" (index . 0) (index . 1) (index . 2) (index . 3) (index . 2)) }}
{{- end }}
{{- end }}

{{/* Health is served on loopback, at address and port of the configuration. */}}
{{- define "pynet.healthAddress" -}}
{{- dig "health" "address" "127.0.0.1" (.Values.config | default dict) }}
{{- end }}

{{- define "pynet.healthPort" -}}
{{- dig "health" "port" 9794 (.Values.config | default dict) }}
{{- end }}

{{- define "pynet.metricsPort" -}}
{{- dig "metrics" "port" 9793 (.Values.config | default dict) }}
{{- end }}

{{/* What every container of ours may do: nothing beyond the capabilities added. uid 0: capabilities do not reach others. */}}
{{- define "pynet.securityContext" -}}
runAsUser: 0
runAsGroup: 0
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- with .add }}
  add: {{ toJson . }}
{{- end }}
{{- with .root.Values.seLinuxOptions }}
seLinuxOptions: {{ toJson . }}
{{- end }}
{{- end }}

{{- define "pynet.agentCapabilities" -}}
{{- $caps := list "NET_ADMIN" }}
{{- if .Values.netRaw }}{{ $caps = append $caps "NET_RAW" }}{{ end }}
{{- concat $caps (.Values.extraCapabilities | default list) | uniq | toJson }}
{{- end }}

{{/* Mounts that the agent and the cleanup need alike. */}}
{{- define "pynet.mounts" -}}
- {name: config, mountPath: /etc/pynet, readOnly: true}
- {name: cni-conf, mountPath: {{ .Values.hostPaths.cniConf | quote }}}
- {name: state, mountPath: {{ .Values.hostPaths.state | quote }}}
- {name: run, mountPath: {{ .Values.hostPaths.run | quote }}}
- {name: proc-sys-net, mountPath: /host/proc/sys/net}
{{- if .Values.netRaw }}
- {name: xtables-lock, mountPath: /run/xtables.lock}
{{- end }}
{{- end }}

{{- define "pynet.volumes" -}}
- name: config
  configMap: {name: {{ include "pynet.name" . | quote }}}
- name: cni-conf
  hostPath: {path: {{ .Values.hostPaths.cniConf | quote }}, type: DirectoryOrCreate}
- name: cni-bin
  hostPath: {path: {{ .Values.hostPaths.cniBin | quote }}, type: DirectoryOrCreate}
- name: state
  hostPath: {path: {{ .Values.hostPaths.state | quote }}, type: DirectoryOrCreate}
- name: run
  hostPath: {path: {{ .Values.hostPaths.run | quote }}, type: DirectoryOrCreate}
- name: proc-sys-net
  hostPath: {path: /proc/sys/net, type: Directory}
{{- if .Values.netRaw }}
- name: xtables-lock
  hostPath: {path: /run/xtables.lock, type: FileOrCreate}
{{- end }}
{{- end }}

{{/* What is the same of every pod of ours that works on a node. */}}
{{- define "pynet.nodePod" -}}
hostNetwork: true
dnsPolicy: ClusterFirstWithHostNet
securityContext:
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- include "pynet.pullSecrets" . }}
nodeSelector: {{ toJson .Values.nodeSelector }}
{{- with .Values.affinity }}
affinity: {{ toJson . }}
{{- end }}
{{- end }}

{{- define "pynet.pullSecrets" -}}
{{- with .Values.imagePullSecrets | default (dig "imagePullSecrets" (list) (.Values.global | default dict)) }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- end }}

{{- define "pynet.hook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: "-5"
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{- define "pynet.jobHook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: "0"
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
helm.sh/hook-output-log-policy: hook-succeeded,hook-failed
{{- end }}
